"""The subcommands, one file each. Heavy imports stand inside their functions."""
