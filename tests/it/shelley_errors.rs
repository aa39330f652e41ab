//! What the file system of the example says when its server fails it.
