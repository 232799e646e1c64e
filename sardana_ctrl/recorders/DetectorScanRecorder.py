"""Sardana's HDF5 recorder, with one virtual dataset for each detector of the scan."""

from __future__ import annotations

import posixpath
from typing import Any

import h5py
from sardana.macroserver.recorders.h5storage import NXscanH5_FileRecorder

from sardana_ctrl import images
from sardana_ctrl.references import as_text, parse


class DetectorScanRecorder(NXscanH5_FileRecorder):
    """`senv ScanRecorder "['DetectorScanRecorder']"`. `<detector>` is the images, `<detector>_ref` the references,
    `<detector>_missing` the points without an image; entry/data is the default plot."""

    formats: dict[str, str] = {}  # chosen by name only: two recorders for .h5 would be one too many

    def _endRecordList(self, recordlist: Any) -> None:
        if self.filename is None:
            return
        entry = self.fd[self.entryname]
        try:
            detectors = [dd for dd in self.datadesc if dd.value_ref_enabled and dd.label in entry["measurement"]]
            for dd in detectors:
                self._link(entry, dd, len(recordlist.records))
            self._default_plot(entry, [dd.label for dd in detectors])
        except Exception as exc:  # the rest of the scan is closed all the same
            self._warn(f"the images are not in {self.filename}: {exc!r}; they are in the files of the detectors")
        super()._endRecordList(recordlist)

    def _link(self, entry: h5py.Group, dd: Any, points: int) -> None:
        measurement, label = entry["measurement"], dd.label
        texts = [text.decode() if isinstance(text, bytes) else text for text in measurement[label][()]]
        first = next((reference for text in texts if (reference := parse(text))), None)
        if first is None:
            if texts:
                self._warn(f"{label}: no point has an image")
            return
        dd.value_ref_enabled = False  # the stock recorder would now try its own way
        measurement.move(label, f"{label}_ref")
        linked = images.link(measurement, label, texts, points)
        if linked.problem:
            self._warn(f"{label}: {linked.problem}")
        if linked.missing:
            self._warn(f"{label}: no image at {len(linked.missing)} of {points} points: {as_text(linked.missing)}")
        if label in measurement:
            self._describe(entry, label, first.path, first.dataset)

    def _describe(self, entry: h5py.Group, label: str, path: str, dataset: str) -> None:
        """NXdetector with the images and, in the detector's own file, all that is known of it."""
        detector = entry.require_group("instrument").require_group(label)
        entry["instrument"].attrs.setdefault("NX_class", "NXinstrument")
        detector.attrs["NX_class"] = "NXdetector"
        detector["data"] = h5py.SoftLink(f"{entry.name}/measurement/{label}")
        detector["detector_file"] = h5py.ExternalLink(
            images.relative(path, self.filename), "/" + posixpath.dirname(dataset).strip("/")
        )

    def _default_plot(self, entry: h5py.Group, detectors: list[str]) -> None:
        """entry/data: the first detector over the first motor, or over the number of the point."""
        measurement = entry["measurement"]
        signals = [label for label in detectors if label in measurement]
        if not signals or "data" in entry:
            return
        data = entry.create_group("data")
        data.attrs["NX_class"] = "NXdata"
        for label in signals:
            data[label] = h5py.SoftLink(f"{entry.name}/measurement/{label}")
        data.attrs["signal"] = signals[0]
        if len(signals) > 1:
            data.attrs["auxiliary_signals"] = signals[1:]
        motors = [name for name in self._motors() if name in measurement]
        axis = motors[0] if motors else "point_nb"
        if axis in measurement:
            data[axis] = h5py.SoftLink(f"{entry.name}/measurement/{axis}")
            data.attrs["axes"] = [axis] + ["."] * (measurement[signals[0]].ndim - 1)
        entry.attrs["default"] = "data"
        self.fd.attrs["default"] = self.entryname

    def _motors(self) -> list[str]:
        return [self.sanitizeName(str(name)) for name in self.currentlist.getEnviron().get("ref_moveables") or []]

    def _warn(self, text: str) -> None:
        macro = self.macro() if self.macro is not None else None
        if macro is not None:
            macro.warning(text)
        else:
            self.warning(text)
