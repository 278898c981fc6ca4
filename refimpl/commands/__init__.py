"""One file per subcommand: HELP, EXAMPLE, add_arguments(parser), run(args) -> exit code."""
