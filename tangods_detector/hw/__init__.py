"""Backends by name. Outside this package the `Backend` property also takes `package.module:Class`."""
