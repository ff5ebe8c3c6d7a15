"""Stage parity: every arm answers the frozen cases, is graded, and is compared with statistics."""
