"""From decoded pictures and picture files to upright pixels, as they are shown."""
