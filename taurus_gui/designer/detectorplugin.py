"""DetectorWidget in the widget box of Taurus designer."""

from taurus.qt.qtdesigner.taurusplugin.taurusplugin import TaurusWidgetPlugin

from taurus_gui.detectorwidget import DetectorWidget


class DetectorWidgetPlugin(TaurusWidgetPlugin):
    WidgetClass = DetectorWidget
