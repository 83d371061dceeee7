"""The server over HTTP, in OpenAI's form."""
