/** The version of this bundle; a test compares it with the Python package's. */
export const VERSION = '0.1.0';
