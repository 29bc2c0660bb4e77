"""The only place that imports pydicom, highdicom and pynetdicom: reading pixels and headers, writing objects, phantoms, networks.

pydicom and pynetdicom quote the values that they dislike in their logs and warnings, and such a value can be a patient's. Neither may reach
a log of radloop, so all are silent from here on; what is wrong with a file or a peer is said by radloop, without the value.
"""

import logging
import warnings

for _library in ("pydicom", "pynetdicom"):
    logging.getLogger(_library).setLevel(logging.CRITICAL)
warnings.filterwarnings("ignore", module=r"pydicom(\.|$)")
