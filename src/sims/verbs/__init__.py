"""The verbs every experiment is composed of: train, synthesize, evaluate."""
