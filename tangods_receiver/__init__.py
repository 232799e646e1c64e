"""StreamReceiver: takes detector image streams over ZeroMQ and writes HDF5/NeXus files."""

__version__ = "0.1.0"
