"""Objects between radloop and other machines: what was sent, fetched and received, kept so that it survives being killed."""
