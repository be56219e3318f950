"""The asyncio driver: owns the grid's state, asks the pure rooms what to do, and carries out what they say."""
