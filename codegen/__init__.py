"""From decisions to source text: closed-form index maps. Pure text and algebra; nothing here runs on a device."""
