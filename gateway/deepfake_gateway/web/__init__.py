"""The web page: server-rendered, works without JavaScript, asks no other host."""
