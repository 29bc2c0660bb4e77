"""The only place that imports pydicom and highdicom: reading pixels and headers, writing objects, the generated export."""
