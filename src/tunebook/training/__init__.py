"""SFT and DPO: arguments, audits, callbacks, memory."""
