"""The providers: the only code that imports any_llm, asgiref or a provider's SDK."""
