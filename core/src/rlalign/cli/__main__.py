from rlalign.cli.commands import main

main()
