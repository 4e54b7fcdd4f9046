on_every_node rm -rf "$staged"
