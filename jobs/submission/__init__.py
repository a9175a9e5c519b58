"""Jobs on a cluster that runs already: what is sent, how it is asked for, and how it is followed."""
