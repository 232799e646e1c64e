"""The error family, named by who must act. Every message says what was tried, what came back and what to do."""


class DaqError(Exception):
    """Anything this package raises on purpose."""


class ConfigError(DaqError):
    """The operator must act: a property, a configuration file or a setting is wrong."""


class HardwareError(DaqError):
    """The detector must be looked at: it refused, failed or cannot be reached."""


class StreamError(DaqError):
    """The sender must act: a message that does not follow its protocol."""


class WriteError(DaqError):
    """The storage must be looked at: the file cannot be created, written or closed."""
