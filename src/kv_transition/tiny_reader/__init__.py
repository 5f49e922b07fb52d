"""The small reading model that the default experiment runs, and how it was trained."""
