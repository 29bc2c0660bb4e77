"""A real PACS (Orthanc) and a real viewer (OHIF in Chromium) for the tests, each started for them and ended with them."""
