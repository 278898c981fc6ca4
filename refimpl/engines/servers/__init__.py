"""What openai_http.py is made of: the client, the check of what came back, and one file per kind of server."""
