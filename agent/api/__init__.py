"""The agent's HTTPS API: routes, handlers, errors as problem documents, signed requests, serving. Starlette lives here."""
