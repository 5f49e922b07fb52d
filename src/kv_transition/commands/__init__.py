"""What the commands on predictions files do: a function a command, options in, exit code out."""
