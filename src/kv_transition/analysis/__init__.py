"""From scores to intervals, retention and transition budgets."""
