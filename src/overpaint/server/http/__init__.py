"""HTTP for every dialect: middleware, connections, authentication, error responses, links."""
