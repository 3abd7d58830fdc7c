"""The processes that run one pipeline together."""
