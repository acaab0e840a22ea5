//! Stories live in one file each beside this one.
