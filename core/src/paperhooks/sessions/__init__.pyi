from .removal import strip as strip
from .session import Session as Session
from .session import active_session as active_session
from .session import attach as attach
