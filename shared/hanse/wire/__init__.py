"""The messages between server and sites: frames, chunks and tensor encodings."""
