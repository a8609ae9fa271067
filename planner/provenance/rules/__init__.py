"""How each operation moves provenance: rules, found by an operation's name or by its kind."""
