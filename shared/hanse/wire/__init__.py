"""The messages between server and sites, as frames of protocol buffers.

``hanse.proto`` is the contract. After a change to it, from the folder ``shared``::

    python -m grpc_tools.protoc -I. --python_out=. --mypy_out=. hanse/wire/hanse.proto

A message is a header and a body. The header holds everything but the bytes of arrays, which
follow, in order and without gaps, as the chunks of the body.
"""
