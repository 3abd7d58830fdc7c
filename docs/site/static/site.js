// Opened from a disk, pages may not read each other: search then lists titles without the lines around a word.
if (location.protocol === "file:") DOCUMENTATION_OPTIONS.SHOW_SEARCH_SUMMARY = false;
