"""Stage releases: the gate's verdict on a student, and the bundle that production loads."""
