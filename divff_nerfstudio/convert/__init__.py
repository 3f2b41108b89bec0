"""Turning one's own videos and reconstructions into scene folders."""
