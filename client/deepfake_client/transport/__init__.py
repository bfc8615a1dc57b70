"""How a server is reached: KServe v2 over gRPC, HTTP and shared memory; retries, TLS and errors."""
