"""The parts of openai_http.py: the client, the check of what came back, and one file per kind of server."""
