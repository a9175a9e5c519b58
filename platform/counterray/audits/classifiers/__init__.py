"""What can be audited: one file for each kind of classifier, all behind one small contract."""
