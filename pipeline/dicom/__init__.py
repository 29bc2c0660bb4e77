"""The only place that imports pydicom and highdicom: reading pixels and headers, writing objects, the generated export.

pydicom quotes the values that it dislikes in its log and its warnings, and such a value can be a patient's. Neither may reach a
log of radloop, so both are silent from here on; what is wrong with a file is said by radloop, without the value.
"""

import logging
import warnings

logging.getLogger("pydicom").setLevel(logging.CRITICAL)
warnings.filterwarnings("ignore", module=r"pydicom(\.|$)")
