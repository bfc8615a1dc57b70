"""The verdict service: REST, a web page and durable jobs in front of Triton and the client library.

Folders, from the command line down: `cli` (the command and its processes), `app` (what one web process is made of),
`api` and `web` (routes for programs and for people), `intake` (uploads), `jobs` (the queue and its worker), `sandbox`
(where media are opened), `store` (database and files), `settings`. Run it with ``deepfake gateway``.
"""
