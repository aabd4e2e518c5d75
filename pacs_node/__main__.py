from pacs_node.cli.main import main

main()
