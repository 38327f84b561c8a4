"""Serving: a client and a server of TF Serving's protocols, and the settings for TF Serving itself."""
