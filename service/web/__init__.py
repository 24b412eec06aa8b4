"""The console: a page that the server itself serves. `built/` is made from `src/` by `make console`."""
