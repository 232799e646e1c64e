"""For Taurus designer: `taurus designer --taurus-path .../taurus_gui/designer`."""
