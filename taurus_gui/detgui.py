"""Configuration for taurusgui, `taurus gui "$(detector-gui --taurusgui)"`: a panel for each detector that the variable
DETECTORS names, else for all that the database knows."""

import os

from taurus.qt.qtgui.taurusgui.utils import PanelDescription

from taurus_gui.chooser import registered

GUI_NAME = "detgui"
ORGANIZATION = "tangods-detector"
DETECTORS = os.environ.get("DETECTORS", "").split() or registered()

for _device in DETECTORS:
    _name = _device.rpartition("//")[2].replace("/", "_")
    # taurusgui looks for panels among the names of this module
    globals()[f"panel_{_name}"] = PanelDescription(
        f"Detector {_device}",
        classname="taurus_gui.detectorwidget:DetectorWidget",
        model=_device,
        floating=False,
    )
