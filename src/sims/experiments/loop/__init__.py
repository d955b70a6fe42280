"""Self-consuming loops: generations trained on earlier generations' samples, and what keeps them from degrading."""
