"""The commands around export: `export`, `build-engines`, `repository`, `demo-checkpoint`."""
