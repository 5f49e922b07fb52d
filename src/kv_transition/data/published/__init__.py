"""Results that exist already, in the layouts in which they are published: the files of a task become rows of runs."""
