"""Whether every host is fit to take part in a cluster, looked at before anything is started."""
